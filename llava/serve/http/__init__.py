"""HTTP for all servers: flags, limits, authentication, replies, metrics."""
