"""What judges samples: metric modules for `evaluate`, the quality/diversity frontier, reports and plots."""
