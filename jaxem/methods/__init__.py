"""Rules for q and for the params; they know no model."""
