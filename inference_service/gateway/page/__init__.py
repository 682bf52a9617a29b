"""The page of the gateway: its files, and the routes that serve them. All that it shows comes from the API."""
