"""The file mover end to end: real servers and clients, real files, real failures."""
