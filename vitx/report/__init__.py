"""The report page: template, charts, pictures."""
