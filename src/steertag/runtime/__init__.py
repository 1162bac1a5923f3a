"""The only code that waits: loops, threads, event-loop glue."""
