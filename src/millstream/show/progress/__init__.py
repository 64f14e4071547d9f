"""How far a run is, shown while it is under way."""
