-- Take a duty that one process at a time has, or keep it, for p_seconds; answers whether the caller has it now.
-- Free is a duty whose time is over, or whose holder has lost its session lock.
--   select pgqueue.take_duty('sweep', '<worker>', 5);
create or replace function pgqueue.take_duty(p_name text, p_holder uuid, p_seconds double precision) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_until timestamptz := v_now + p_seconds * interval '1 second';
    v_holder uuid;
begin
    -- A holder renews in the second half of its time only: a row that is written rarely leaves few dead versions.
    perform from pgqueue.duty d
      where d.name = p_name and d.holder = p_holder and d.until > v_now + (v_until - v_now) / 2;
    if found then
        return true;
    end if;
    select d.holder into v_holder from pgqueue.duty d where d.name = p_name and d.holder <> p_holder and d.until > v_now;
    if found and not exists (select from pgqueue.worker w
                              where w.id = v_holder and w.locked and not pgqueue.lock_held(w.id)) then
        return false;
    end if;
    update pgqueue.duty d set holder = p_holder, until = v_until
     where d.name = p_name and (d.holder = p_holder or d.holder = v_holder or d.until <= v_now);
    if found then
        return true;
    end if;
    insert into pgqueue.duty as d (name, holder, until) values (p_name, p_holder, v_until) on conflict (name) do nothing;
    return found;
end
$$;
