"""Rows that the HTTP gateway alone uses: tokens and their limits, uploads, webhooks, news of jobs."""
