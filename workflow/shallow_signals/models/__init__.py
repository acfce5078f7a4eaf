"""Loading models and laying out what they read."""
