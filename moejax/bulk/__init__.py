"""Many prompts from a file, their continuations into another: JSON lines, plain ones or OpenAI's batch form."""
