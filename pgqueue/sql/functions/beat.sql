-- Say that a worker lives, every 10 s, and which task names it has met and does not know. Answers false if it has
-- been given up for dead meanwhile: its leases are gone, and it must not claim under this id any more.
--   select pgqueue.beat('<worker>', '{}');
create or replace function pgqueue.beat(p_worker uuid, p_unknown text[] default '{}') returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    update pgqueue.worker w set beats = w.beats + 1, beat_at = v_now, unknown = p_unknown where w.id = p_worker;
    return found;
end
$$;
