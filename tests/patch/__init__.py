"""Programs and libraries over sockets that `steertag.patch` chooses."""
