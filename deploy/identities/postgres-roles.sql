-- The service's roles. The database is the service's own; run this as its superuser, as often as you like.
-- `inference-service migrate` owns the tables and grants the other roles their rights (inference_service/jobs/grants.py).
DO $$
DECLARE
    name text;
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    FOREACH name IN ARRAY ARRAY[
        'inference_migrate', 'inference_worker', 'inference_upstream', 'inference_gateway', 'inference_monitoring',
        'inference_keda'
    ] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
    END LOOP;
    GRANT CREATE ON SCHEMA public TO inference_migrate;

    -- Tables of an installation that had one user for everything; their sequences follow them.
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'inference_migrate' LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO inference_migrate', name);
    END LOOP;
    FOR name IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proowner <> 'inference_migrate'::regrole
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO inference_migrate', name);
    END LOOP;

    -- Whoever holds the sweep's lock stops all sweeps.
    FOR name IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^pg_(try_)?advisory_'
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO inference_migrate, inference_worker', name);
    END LOOP;
END
$$;

-- So that no one of them takes all connections of the server.
ALTER ROLE inference_upstream CONNECTION LIMIT 40;
ALTER ROLE inference_gateway CONNECTION LIMIT 40;
ALTER ROLE inference_monitoring CONNECTION LIMIT 10;
ALTER ROLE inference_keda CONNECTION LIMIT 10;
