"""What we claim: recipes side by side, ablations, and the tables that come of them."""
