"""What surrounds the pages: sign-in, request checks, response headers, served files, background tasks."""
