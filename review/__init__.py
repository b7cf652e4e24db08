"""The review page: a results folder as a worklist, its slides with their heatmaps, and what reviewers decide."""
