"""The body of each larger page: forms, buttons and results. Views import everything but pages."""
