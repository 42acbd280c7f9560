"""From class maps to masks: seed maps, confident labels, affinities, and the walk along them."""
