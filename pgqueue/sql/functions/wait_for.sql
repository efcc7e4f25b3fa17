-- Say that somebody waits for a result (p_id names the call of get()), so that its acknowledgement notifies
-- channel "pgqueue.done". Look at the status once more afterwards, then wait; call stop_waiting at the end.
--   select pgqueue.wait_for('<job>', '<call>', 60);
create or replace function pgqueue.wait_for(p_job uuid, p_id uuid, p_seconds double precision) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_until timestamptz := pgqueue.clock() + p_seconds * interval '1 second';
begin
    insert into pgqueue.waiter as w (job, id, until) values (p_job, p_id, v_until)
        on conflict (job, id) do update set until = excluded.until;
end
$$;
