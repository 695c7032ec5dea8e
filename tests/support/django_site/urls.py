"""The routes of the project."""

from django.urls import path

from tests.support.django_site import views

urlpatterns = [
    path("healthz", views.healthz),
    path("profiles/<int:number>/", views.profile),
    path("orders/", views.orders),
    path("uploads/", views.uploads),
    path("export/", views.export),
    path("file/", views.file),
    path("late/", views.late),
    path("late-stream/", views.late_stream),
    path("fails/", views.fails),
]
