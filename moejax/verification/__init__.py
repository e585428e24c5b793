"""Whether two models compute the same: logits compared position by position."""
