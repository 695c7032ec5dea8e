-- Run by psql as a superuser at each start (`roles` in docker-compose.yml). Makes the registry's two roles, by
-- migrations/roles.sql, and sets their passwords, which are in files.
\set ON_ERROR_STOP on
\set owner `cat /run/secrets/registry_owner_password`
\set app `cat /run/secrets/registry_app_password`
\i /etc/peerseal/roles.sql
ALTER ROLE peerseal_owner PASSWORD :'owner';
ALTER ROLE peerseal_app PASSWORD :'app';
