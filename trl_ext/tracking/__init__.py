"""What a run leaves behind: metrics, progress, plots."""
