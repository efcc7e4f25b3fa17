-- Take back what wait_for said.
--   select pgqueue.stop_waiting('<job>', '<call>');
create or replace function pgqueue.stop_waiting(p_job uuid, p_id uuid) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    delete from pgqueue.waiter w where w.job = p_job and w.id = p_id;
end
$$;
