"""Conversations -> token ids and masks: templates, the marks round a turn, control tokens."""
