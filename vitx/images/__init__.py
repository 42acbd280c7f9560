"""Image files and pixels: what data, models and pictures share."""
