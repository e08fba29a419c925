"""Rules for the two coordinates of the free energy: they know no model."""
