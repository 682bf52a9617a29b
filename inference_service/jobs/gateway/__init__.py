"""Rows that the HTTP gateway alone uses: tokens, uploads, webhooks."""
