"""What pages do in a real browser."""
