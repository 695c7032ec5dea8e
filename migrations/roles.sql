-- The least privileges of a registry on PostgreSQL.
--
--   peerseal_owner  owns the tables: `peerseal-registry init` and `migrate` run as it, and nothing else does.
--   peerseal_app    what the serving nodes connect as. It adds entries and tiles, and can neither change nor remove one:
--                   an attacker with a node cannot rewrite the ledger, nor put another key in a record's place.
--                   To see whether standbys are connected it needs no further right, and no pg_monitor: every role sees how
--                   many there are (registry/storage/durability.py).
--
-- Run it in the registry's database, once as a superuser before the first `init`, and again as peerseal_owner after `init`
-- and after every `migrate`. It may be repeated: it grants the privileges that the existing tables need. Statements about
-- the schema that the owner has no right to give a warning only. Give each role a password or a certificate of its own.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'peerseal_owner') THEN
        CREATE ROLE peerseal_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'peerseal_app') THEN
        CREATE ROLE peerseal_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
    END IF;
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO peerseal_owner;
GRANT USAGE ON SCHEMA public TO peerseal_app;

DO $$
DECLARE
    allowed record;
BEGIN
    FOR allowed IN
        SELECT * FROM (VALUES
            -- append-only: no UPDATE, no DELETE, no TRUNCATE
            ('entries', 'SELECT, INSERT'),
            ('tiles', 'SELECT, INSERT'),
            ('audit', 'SELECT, INSERT'),
            -- only the owner writes root-signed documents and the revision of the schema
            ('registry_documents', 'SELECT'),
            ('alembic_version', 'SELECT'),
            ('schema_revisions', 'SELECT'),
            -- the state after the entries; of a key only its end can change
            ('ledger_head', 'SELECT, UPDATE (size, frontier)'),
            ('services', 'SELECT, INSERT, UPDATE (seq)'),
            ('keys', 'SELECT, INSERT, UPDATE (active_until, revoked_at, revoked_seq)'),
            ('policies', 'SELECT, INSERT, UPDATE (seq, body), DELETE'),
            ('domain_settings', 'SELECT, INSERT, UPDATE (seq, body)'),
            ('operator_tokens', 'SELECT, INSERT, UPDATE (revoked), DELETE'),
            ('join_tokens', 'SELECT, INSERT, UPDATE (used, withdrawn), DELETE'),
            -- rows that expire
            ('applicants', 'SELECT, INSERT, DELETE'),
            ('used_tokens', 'SELECT, INSERT, DELETE'),
            ('console_sessions', 'SELECT, INSERT, DELETE')
        ) AS listed (name, privileges)
    LOOP
        IF to_regclass('public.' || allowed.name) IS NOT NULL THEN
            EXECUTE format('REVOKE ALL ON public.%I FROM peerseal_app', allowed.name);
            EXECUTE format('GRANT %s ON public.%I TO peerseal_app', allowed.privileges, allowed.name);
        END IF;
    END LOOP;
    IF to_regclass('public.audit_id_seq') IS NOT NULL THEN
        GRANT USAGE ON SEQUENCE public.audit_id_seq TO peerseal_app;
    END IF;
END $$;
