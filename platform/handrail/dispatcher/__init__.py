"""One message's life in a worker: delivered, given to a host, judged, settled. User code never runs here."""
