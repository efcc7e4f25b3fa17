-- Workers that hold leases and are not on the list: given up for dead while they lived, they claimed once more and
-- died before their next beat. Only leases older than p_seconds count: a living one registers again with its beat.
-- A scan of job (0.1 s for a million rows); the sweep asks once a minute and buries whom it finds.
--   select * from pgqueue.orphans(30);
create or replace function pgqueue.orphans(p_seconds double precision) returns setof uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_before timestamptz := pgqueue.clock() - p_seconds * interval '1 second';
begin
    return query
    select distinct j.worker
      from pgqueue.job j
     where j.worker is not null and j.claimed_at < v_before
       and not exists (select from pgqueue.worker w where w.id = j.worker);
end
$$;
