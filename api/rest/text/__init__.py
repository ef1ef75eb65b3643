"""Text routes in the shape of the OpenAI API: completions, chat and embeddings."""
