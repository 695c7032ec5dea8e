"""The settings of the project."""

SECRET_KEY = "for tests alone"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.support.django_site.urls"
USE_TZ = True
LOGGING_CONFIG = None  # the tests' own
MIDDLEWARE = [
    "tests.support.django_site.middleware.PeerMiddleware",  # first, so that all others have request.peer
    "tests.support.django_site.middleware.SeenMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",  # redirects to paths with a slash at their end
]
