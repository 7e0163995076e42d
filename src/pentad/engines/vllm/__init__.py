"""Generation with vLLM: arguments, engine, worker extension, and the certificate of the weights that it holds."""
