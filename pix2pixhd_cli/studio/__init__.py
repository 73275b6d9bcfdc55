"""The studio: a run behind a small web server, and the page that paints with it.

front/   the page: HTML, CSS and ES modules, served as they are
"""
