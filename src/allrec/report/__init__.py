"""What it looks like: one page about a run or a comparison."""
