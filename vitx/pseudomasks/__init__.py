"""From class maps to masks: cues, confident labels, affinities, and the walk along them."""
