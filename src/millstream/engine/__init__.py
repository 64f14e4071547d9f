"""The engine: a pure state machine (``scheduler``) and what drives it. Knows nothing of ``Flow``."""
