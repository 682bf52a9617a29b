"""The JSON that enters and leaves the service: task message, model manifest, report; and the names of result files."""
