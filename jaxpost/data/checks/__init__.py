"""What `jaxpost doctor` looks for in rows, tokenizer and template; numpy only."""
