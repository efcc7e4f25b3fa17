-- An id between two others, as far from the first as p_part says: 0 is the first, 1 the second. By their first 48 bits, which
-- are the time in a UUIDv7; NULL if there are none.
--   select pgqueue.id_between('01a20171-d1ef-7039-a17d-fd20613bb36a', '01a20172-d1ef-7039-a17d-fd20613bb36a', random());
create or replace function pgqueue.id_between(p_first uuid, p_last uuid, p_part double precision) returns uuid
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
declare
    v_first bigint := ('x' || left(replace(p_first::text, '-', ''), 12))::bit(48)::bigint;
    v_last bigint := ('x' || left(replace(p_last::text, '-', ''), 12))::bit(48)::bigint;
begin
    return (lpad(to_hex(v_first + floor((v_last - v_first) * p_part)::bigint), 12, '0') || repeat('0', 20))::uuid;
end
$$;
