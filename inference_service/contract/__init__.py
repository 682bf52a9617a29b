"""All JSON that crosses the service's border: task message, manifest, report, result files."""
