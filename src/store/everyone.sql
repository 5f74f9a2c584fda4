-- PUBLIC, which Postgres gives EXECUTE on every function that is made. Done after every migration, whoever has which role.
REVOKE ALL ON ALL TABLES IN SCHEMA turnmill FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA turnmill FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA turnmill FROM PUBLIC;
REVOKE ALL ON SCHEMA turnmill FROM PUBLIC;
