-- Delete the result of a finished job; answers whether there was one.
--   select pgqueue.forget('<job>');
create or replace function pgqueue.forget(p_job uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    delete from pgqueue.result r where r.id = p_job;
    return found;
end
$$;
