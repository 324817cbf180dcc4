"""The statements of one variant: expressions that are known before a step are replaced by their values."""
