"""A simulation of many replicas: stage times and traffic in, queues and latencies out."""
