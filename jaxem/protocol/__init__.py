"""What models, banks and fits promise each other."""
