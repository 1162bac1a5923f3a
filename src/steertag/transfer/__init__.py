"""The file mover: server and client over four paths."""
