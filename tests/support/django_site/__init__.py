"""A Django project, as `django-admin startproject` lays it out, whose views are called by other services."""
