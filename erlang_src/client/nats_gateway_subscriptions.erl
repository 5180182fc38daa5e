%% The subscriptions of one client: which sids a delivery of the broker goes to.
%%
%% The broker knows one subscription per key (share name and topic filter), NATS knows one per sid.
%% A delivery of a key goes to every plain sid of that key, or to one member of the queue group.
-module(nats_gateway_subscriptions).

-export([new/0]).
-export([count/1]).
-export([bytes/1]).
-export([member/2]).
-export([add/5]).
-export([remove/2]).
-export([limit/3]).
-export([key_state/2]).
-export([takes_from_others/3]).
-export([joined/2]).
-export([unsubscribed/2]).
-export([begin_anew/1]).
-export([reject/2]).
-export([deliver/4]).
-export([is_taken/3]).
-export([plain_sid/2]).
-export([key/2]).
-export([sids/2]).
-export([keys/1]).
-export([list/1]).

-export_type([subscriptions/0, sid/0, subscription/0]).

-type sid() :: binary().
-type key() :: nats_gateway_host:key().
-type subscription() :: #{
    sid := sid(),
    subject := binary(),
    queue_group := undefined | binary(),
    key := key(),
    delivered := non_neg_integer(),
    max := infinity | pos_integer()
}.

%% MQTT's `foo/#' matches `foo', NATS's `foo.>' does not. What a topic must have beyond its parent:
-type beyond() ::
    any
    %% more bytes than this: no `+' in the filter, so the parent has a fixed size
    | {bytes, non_neg_integer()}
    %% more levels than this
    | {levels, non_neg_integer()}.

-record(subscription, {
    subject :: binary(),
    queue_group :: undefined | binary(),
    key :: key(),
    %% plain: the key's count when the sid was added, so that a delivery to a key with many
    %% sids moves one counter; queue member: its own deliveries, negated
    offset :: integer(),
    max = infinity :: infinity | pos_integer()
}).

-record(entry, {
    %% empty only until the broker has unsubscribed the key; a queue member with the place that it
    %% took in the line
    sids = #{} :: #{sid() => Place :: non_neg_integer()},
    %% plain: the sids as a list, once a message has come for them; queue group: who is next. Who has
    %% left stays in line until it is its turn, or until there are more of them than of others.
    line = undefined :: undefined | [sid()] | queue:queue({sid(), Place :: non_neg_integer()}),
    places = 0 :: non_neg_integer(),
    left = 0 :: non_neg_integer(),
    %% unsubscribed by the client, but not yet by the broker: what it has sent already is still
    %% theirs, and to a queue group it has assigned it to them alone
    leaving = [] :: [sid()],
    beyond :: beyond(),
    delivered = 0 :: non_neg_integer(),
    %% those with a max
    limited = #{} :: #{sid() => []}
}).

%% The keys of a queue group on this connection.
-record(group, {
    %% those that match one topic only, and the others
    literals = #{} :: #{key() => []},
    wildcards = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    %% those that the broker does not know yet, or does not know any more perhaps
    joining = #{} :: #{key() => []},
    leaving = #{} :: #{key() => []},
    %% messages that were taken of late: the latest, and those before
    young = #{} :: #{message_id() => []},
    old = #{} :: #{message_id() => []}
}).

%% The same for all copies of a message; not every broker tells.
-type message_id() :: undefined | binary().

%% Of each of the two generations. The copies of a message come one soon after the other.
-define(MAX_TAKEN, 128).

%% Besides its subject and its filter.
-define(SUB_BYTES, 64).

%% So many of a line may have left it, whatever its length.
-define(MAX_LEFT, 16).

-record(subscriptions, {
    subs = #{} :: #{sid() => #subscription{}},
    entries = #{} :: #{key() => #entry{}},
    groups = #{} :: #{ShareName :: binary() => #group{}},
    %% filters of plain keys
    wildcards = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    %% of all subjects and filters
    bytes = 0 :: non_neg_integer()
}).

-opaque subscriptions() :: #subscriptions{}.

-spec new() -> subscriptions().
new() -> #subscriptions{}.

-spec count(subscriptions()) -> non_neg_integer().
count(#subscriptions{subs = Subs}) -> map_size(Subs).

%% What the binaries of all sids take, about.
-spec bytes(subscriptions()) -> non_neg_integer().
bytes(#subscriptions{subs = Subs, bytes = Bytes}) -> ?SUB_BYTES * map_size(Subs) + Bytes.

-spec member(sid(), subscriptions()) -> boolean().
member(Sid, #subscriptions{subs = Subs}) -> is_map_key(Sid, Subs).

%% The sid must be free. `new_key': the broker has to be asked for this key.
-spec add(sid(), binary(), undefined | binary(), key(), subscriptions()) ->
    {new_key | known_key, subscriptions()}.
add(Sid, Subject, QueueGroup, Key, Old = #subscriptions{bytes = Bytes}) ->
    S = #subscriptions{subs = Subs, entries = Entries} =
        Old#subscriptions{bytes = Bytes + texts(Subject, Key)},
    case Entries of
        #{Key := Entry = #entry{sids = Sids, delivered = Delivered}} ->
            Known =
                case map_size(Sids) of
                    0 -> new_key;
                    _ -> known_key
                end,
            Sub = sub(Subject, QueueGroup, Key, Delivered),
            {Known, S#subscriptions{
                subs = Subs#{Sid => Sub},
                entries = Entries#{Key := enter(Sid, Key, Entry)}
            }};
        #{} ->
            Sub = sub(Subject, QueueGroup, Key, 0),
            {new_key, join(Key, S#subscriptions{
                subs = Subs#{Sid => Sub},
                entries = Entries#{Key => enter(Sid, Key, entry(Key))}
            })}
    end.

texts(Subject, {_, Filter}) -> byte_size(Subject) + byte_size(Filter).

sub(Subject, QueueGroup = undefined, Key, Delivered) ->
    #subscription{subject = Subject, queue_group = QueueGroup, key = Key, offset = Delivered};
sub(Subject, QueueGroup, Key, _) ->
    #subscription{subject = Subject, queue_group = QueueGroup, key = Key, offset = 0}.

entry(Key = {undefined, _}) -> #entry{beyond = beyond(Key)};
entry(Key) -> #entry{beyond = beyond(Key), line = queue:new()}.

enter(Sid, {undefined, _}, Entry = #entry{sids = Sids}) ->
    Entry#entry{sids = Sids#{Sid => 0}, line = undefined};
enter(Sid, _, Entry = #entry{sids = Sids, line = Line, places = Place}) ->
    %% It has waited for no message yet: the next one is its.
    Entry#entry{
        sids = Sids#{Sid => Place}, line = queue:in_r({Sid, Place}, Line), places = Place + 1
    }.

take_leave(Sid, Key, Entry = #entry{sids = Sids, limited = Limited}) ->
    NEntry = Entry#entry{sids = maps:remove(Sid, Sids), limited = maps:remove(Sid, Limited)},
    leave_line(Key, NEntry).

leave_line({undefined, _}, Entry) ->
    Entry#entry{line = undefined};
leave_line(_, Entry = #entry{sids = Sids, line = Line, left = Left}) when
    Left >= map_size(Sids) + ?MAX_LEFT
->
    Entry#entry{line = queue:filter(fun(Place) -> has_place(Place, Sids) end, Line), left = 0};
leave_line(_, Entry = #entry{left = Left}) ->
    Entry#entry{left = Left + 1}.

has_place({Sid, Place}, Sids) -> maps:get(Sid, Sids, none) =:= Place.

%% Without waiting for the broker.
-spec remove(sid(), subscriptions()) -> subscriptions().
remove(Sid, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := #subscription{key = Key}} ->
            NS = #subscriptions{entries = Entries} = forget(Sid, Key, S),
            case Entries of
                #{Key := #entry{sids = Sids, leaving = []}} when map_size(Sids) =:= 0 ->
                    drop(Key, NS);
                #{} ->
                    NS
            end;
        #{} ->
            S
    end.

%% The key stays.
forget(Sid, Key, S = #subscriptions{subs = Subs, entries = Entries, bytes = Bytes}) ->
    {#subscription{subject = Subject}, NSubs} = maps:take(Sid, Subs),
    S#subscriptions{
        subs = NSubs,
        entries = Entries#{Key := take_leave(Sid, Key, maps:get(Key, Entries))},
        bytes = Bytes - texts(Subject, Key)
    }.

drop(Key, S = #subscriptions{entries = Entries}) ->
    part(Key, S#subscriptions{entries = maps:remove(Key, Entries)}).

%% The sid is free at once. As the last of its key it still gets what comes before the broker has
%% confirmed; not so with a max, which is never exceeded. Its key is returned: the broker is to be told.
leave(Sid, #subscription{key = Key, max = Max}, S) ->
    NS = #subscriptions{entries = Entries} = forget(Sid, Key, S),
    Entry = #entry{sids = Sids, leaving = Leaving} = maps:get(Key, Entries),
    case Key of
        _ when map_size(Sids) > 0 ->
            {[], NS};
        {undefined, _} when Max =/= infinity, Leaving =:= [] ->
            {[Key], drop(Key, NS)};
        _ ->
            NLeaving = [Sid || Max =:= infinity] ++ Leaving,
            {[Key], NS#subscriptions{
                entries = Entries#{Key := Entry#entry{leaving = NLeaving}},
                groups = is_leaving(Key, NS#subscriptions.groups)
            }}
    end.

%% The broker has confirmed that nothing more comes for the key.
-spec unsubscribed(key(), subscriptions()) -> subscriptions().
unsubscribed(Key, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} when map_size(Sids) =:= 0 ->
            drop(Key, S);
        #{Key := Entry} ->
            stays(Key, S#subscriptions{entries = Entries#{Key := Entry#entry{leaving = []}}});
        #{} ->
            S
    end.

%% The broker is another one: nothing comes of what was under way.
-spec begin_anew(subscriptions()) -> subscriptions().
begin_anew(S = #subscriptions{entries = Entries}) ->
    lists:foldl(fun(Key, Acc) -> joined(Key, unsubscribed(Key, Acc)) end, S, maps:keys(Entries)).

%% The broker knows the key: what matches it comes for it, too.
-spec joined(key(), subscriptions()) -> subscriptions().
joined({undefined, _}, S) ->
    S;
joined(Key = {Share, _}, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group = #group{joining = Joining}} ->
            S#subscriptions{groups = Groups#{Share := Group#group{joining = maps:remove(Key, Joining)}}};
        #{} ->
            S
    end.

stays({undefined, _}, S) ->
    S;
stays(Key = {Share, _}, S = #subscriptions{groups = Groups}) ->
    #{Share := Group = #group{leaving = Leaving}} = Groups,
    S#subscriptions{groups = Groups#{Share := Group#group{leaving = maps:remove(Key, Leaving)}}}.

%% `leaving': the broker has still to confirm an unsubscription of the key.
-spec key_state(key(), subscriptions()) -> known | leaving | unknown.
key_state(Key, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids, leaving = []}} when map_size(Sids) > 0 -> known;
        #{Key := _} -> leaving;
        #{} -> unknown
    end.

%% Whether an UNSUB ends at once what the sid gets, while what was sent before may be on its way to it.
-spec takes_from_others(sid(), non_neg_integer(), subscriptions()) -> boolean().
takes_from_others(Sid, Max, #subscriptions{subs = Subs, entries = Entries}) ->
    case Subs of
        #{Sid := Sub = #subscription{key = Key, max = OldMax}} ->
            Entry = #entry{sids = Sids} = maps:get(Key, Entries),
            delivered(Sub, Entry) >= Max andalso (OldMax =/= infinity orelse map_size(Sids) > 1);
        #{} ->
            false
    end.

%% UNSUB with a max, counted from the SUB; 0, or reached already, removes at once.
-spec limit(sid(), non_neg_integer(), subscriptions()) -> {[key()], subscriptions()}.
limit(Sid, Max, S = #subscriptions{subs = Subs, entries = Entries}) ->
    case Subs of
        #{Sid := Sub = #subscription{key = Key}} ->
            Entry = maps:get(Key, Entries),
            case delivered(Sub, Entry) >= Max of
                true when Max =:= 0 ->
                    leave(Sid, Sub, S);
                true ->
                    leave(Sid, Sub#subscription{max = Max}, S);
                false ->
                    Limited = Entry#entry.limited,
                    {[], S#subscriptions{
                        subs = Subs#{Sid := Sub#subscription{max = Max}},
                        entries = Entries#{Key := Entry#entry{limited = Limited#{Sid => []}}}
                    }}
            end;
        #{} ->
            {[], S}
    end.

delivered(#subscription{queue_group = undefined, offset = Offset}, #entry{delivered = Delivered}) ->
    Delivered - Offset;
delivered(#subscription{offset = Offset}, _) ->
    -Offset.

%% The broker refused the key: its sids are gone and free again.
-spec reject(key(), subscriptions()) -> {[subscription()], subscriptions()}.
reject(Key, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} ->
            Rejected = maps:keys(Sids),
            {[describe(Sid, S) || Sid <- Rejected], lists:foldl(fun remove/2, S, Rejected)};
        #{} ->
            {[], S}
    end.

%% The sids that get this copy of a message from the broker, and the keys that became unused by it.
-spec deliver(key(), Topic :: binary(), message_id(), subscriptions()) ->
    {[sid()], [key()], subscriptions()}.
deliver(Key = {undefined, _}, Topic, _, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids, leaving = Leaving, beyond = Beyond}} when
            map_size(Sids) =:= 0
        ->
            case is_beyond(Topic, Beyond) of
                true -> {Leaving, [], S};
                false -> {[], [], S}
            end;
        #{Key := Entry = #entry{beyond = Beyond, delivered = N, limited = Limited}} ->
            case is_beyond(Topic, Beyond) of
                false ->
                    {[], [], S};
                true ->
                    Sids = line(Entry),
                    NEntry = Entry#entry{line = Sids, delivered = N + 1},
                    NS = S#subscriptions{entries = Entries#{Key := NEntry}},
                    case map_size(Limited) of
                        0 ->
                            {Sids, [], NS};
                        _ ->
                            {Unused, NNS} = leave_all(full(maps:keys(Limited), NEntry, NS), NS),
                            {Sids, Unused, NNS}
                    end
            end;
        #{} ->
            {[], [], S}
    end;
deliver(Key = {Share, _}, Topic, Id, S = #subscriptions{groups = Groups, entries = Entries}) when
    is_map_key(Key, Entries)
->
    #{Share := Group = #group{literals = Literals, wildcards = Wildcards}} = Groups,
    case was_taken(Id, Group) of
        true ->
            {[], [], S};
        false ->
            case map_size(Literals) + nats_gateway_filters:count(Wildcards) of
                1 ->
                    to_member([Key], Topic, S);
                _ ->
                    Matching = matching(Key, Topic, Group),
                    case counts(Key, Matching, Id, Group) of
                        true ->
                            NS = S#subscriptions{groups = Groups#{Share := take(Id, Group)}},
                            to_member(Matching, Topic, NS);
                        false ->
                            {[], [], S}
                    end
            end
    end;
deliver(_, _, _, S) ->
    {[], [], S}.

line(#entry{line = undefined, sids = Sids}) -> maps:keys(Sids);
line(#entry{line = Sids}) -> Sids.

leave_all(Sids, S) ->
    lists:foldl(
        fun(Sid, {Keys, Acc = #subscriptions{subs = Subs}}) ->
            {Unused, NAcc} = leave(Sid, maps:get(Sid, Subs), Acc),
            {Unused ++ Keys, NAcc}
        end,
        {[], S},
        Sids
    ).

%% The keys that the topic is for, in order. The broker may know this one under another name, so that
%% it matches in any case; it does not know yet of those that join.
matching(Key = {Share, _}, Topic, #group{literals = Literals, wildcards = Wildcards, joining = Joining}) ->
    Literal = {Share, Topic},
    Others =
        [Literal || is_map_key(Literal, Literals)] ++
            [{Share, Filter} || Filter <- nats_gateway_filters:matching(Topic, Wildcards)],
    lists:usort([Key | [K || K <- Others, not is_map_key(K, Joining)]]).

%% For NATS all filters of a queue name are one group: a message that reaches this connection once
%% per filter goes to one member only. The copy of the first matching filter counts, in the same
%% order on every connection. So of the copies that the broker spreads over the connections the one
%% of the smallest filter is always taken, and none is lost.
%%
%% While the broker gets to know another key, or forgets one, it is not known for which keys a
%% message comes. Then the first copy counts, where the broker tells which are copies. Other
%% brokers send what a key matches only after they have confirmed it, and until they confirm its end.
counts(Key, Matching, _, #group{joining = Joining, leaving = Leaving}) when
    map_size(Joining) =:= 0, map_size(Leaving) =:= 0
->
    hd(Matching) =:= Key;
counts(Key, Matching, undefined, #group{joining = Joining}) ->
    Matching =:= [Key] orelse (not is_map_key(Key, Joining) andalso hd(Matching) =:= Key);
counts(_, _, _, _) ->
    true.

%% Whether a member of the group has got a copy of the message.
-spec is_taken(key(), message_id(), subscriptions()) -> boolean().
is_taken({Share, _}, Id, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> was_taken(Id, Group);
        #{} -> false
    end.

was_taken(undefined, _) -> false;
was_taken(Id, #group{young = Young, old = Old}) -> is_map_key(Id, Young) orelse is_map_key(Id, Old).

take(undefined, Group) ->
    Group;
take(Id, Group = #group{young = Young}) when map_size(Young) < ?MAX_TAKEN ->
    Group#group{young = Young#{Id => []}};
take(Id, Group = #group{young = Young}) ->
    Group#group{young = #{Id => []}, old = Young}.

%% One of the members takes its turn, and goes to the end of the line.
to_member(Keys, Topic, S = #subscriptions{entries = Entries}) ->
    case [K || K <- Keys, can_take(Topic, maps:get(K, Entries))] of
        [] ->
            {[], [], S};
        Candidates ->
            Key = least_served(Candidates, Entries),
            case Entries of
                #{Key := #entry{sids = Sids, leaving = [Sid | _]}} when map_size(Sids) =:= 0 ->
                    {[Sid], [], S};
                #{Key := Entry} ->
                    to_sid(Key, Entry, S)
            end
    end.

can_take(_, #entry{sids = Sids, leaving = []}) when map_size(Sids) =:= 0 -> false;
can_take(Topic, #entry{beyond = Beyond}) -> is_beyond(Topic, Beyond).

to_sid(Key, Entry, S = #subscriptions{subs = Subs, entries = Entries}) ->
    {Sid, NEntry = #entry{delivered = N}} = next_in_line(Entry),
    Sub = #subscription{offset = Offset, max = Max} = maps:get(Sid, Subs),
    NSub = Sub#subscription{offset = Offset - 1},
    NS = S#subscriptions{
        subs = Subs#{Sid := NSub},
        entries = Entries#{Key := NEntry#entry{delivered = N + 1}}
    },
    case 1 - Offset >= Max of
        true ->
            {Unused, NNS} = leave(Sid, NSub, NS),
            {[Sid], Unused, NNS};
        false ->
            {[Sid], [], NS}
    end.

next_in_line(Entry = #entry{sids = Sids, line = Line, left = Left}) ->
    {{value, Place = {Sid, _}}, Behind} = queue:out(Line),
    case has_place(Place, Sids) of
        true -> {Sid, Entry#entry{line = queue:in(Place, Behind)}};
        false -> next_in_line(Entry#entry{line = Behind, left = Left - 1})
    end.

%% A key whose sids are leaving is asked only where no other matches.
least_served([Key], _) ->
    Key;
least_served(Keys, Entries) ->
    {_, _, Key} = lists:min([
        {map_size(Sids) =:= 0, Delivered, Key}
     || Key <- Keys, #entry{sids = Sids, delivered = Delivered} <- [maps:get(Key, Entries)]
    ]),
    Key.

full(Sids, Entry, #subscriptions{subs = Subs}) ->
    [
        Sid
     || Sid <- Sids,
        Sub <- [maps:get(Sid, Subs)],
        delivered(Sub, Entry) >= Sub#subscription.max
    ].

%% The sid that gets the 503 of a request: a plain subscription that matches the reply subject, which
%% this is the topic of.
-spec plain_sid(Topic :: binary(), subscriptions()) -> undefined | sid().
plain_sid(Topic, #subscriptions{wildcards = Wildcards, entries = Entries}) ->
    first_sid([Topic | nats_gateway_filters:matching(Topic, Wildcards)], Topic, Entries).

first_sid([], _, _) ->
    undefined;
first_sid([Filter | Filters], Topic, Entries) ->
    case Entries of
        #{{undefined, Filter} := Entry = #entry{sids = Sids}} when map_size(Sids) > 0 ->
            case is_beyond(Topic, Entry#entry.beyond) of
                true -> hd(line(Entry));
                false -> first_sid(Filters, Topic, Entries)
            end;
        #{} ->
            first_sid(Filters, Topic, Entries)
    end.

%% What the broker is subscribed to for this sid.
-spec key(sid(), subscriptions()) -> key().
key(Sid, #subscriptions{subs = Subs}) ->
    #{Sid := #subscription{key = Key}} = Subs,
    Key.

%% Of one key, in order.
-spec sids(key(), subscriptions()) -> [sid()].
sids(Key, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} ->
            [Sid || {_, Sid} <- lists:sort([{byte_size(Sid), Sid} || Sid <- maps:keys(Sids)])];
        #{} ->
            []
    end.

-spec keys(subscriptions()) -> [key()].
keys(#subscriptions{entries = Entries}) ->
    [Key || {Key, #entry{sids = Sids}} <- maps:to_list(Entries), map_size(Sids) > 0].

-spec list(subscriptions()) -> [subscription()].
list(S = #subscriptions{subs = Subs}) -> [describe(Sid, S) || Sid <- maps:keys(Subs)].

describe(Sid, #subscriptions{subs = Subs, entries = Entries}) ->
    Sub = #subscription{subject = Subject, queue_group = QueueGroup, key = Key, max = Max} =
        maps:get(Sid, Subs),
    #{
        sid => Sid,
        subject => Subject,
        queue_group => QueueGroup,
        key => Key,
        delivered => delivered(Sub, maps:get(Key, Entries)),
        max => Max
    }.

join({undefined, Filter}, S = #subscriptions{wildcards = Wildcards}) ->
    case has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:add(Filter, Wildcards)};
        false -> S
    end;
join(Key, S = #subscriptions{groups = Groups}) ->
    S#subscriptions{groups = join_group(Key, Groups)}.

part({undefined, Filter}, S = #subscriptions{wildcards = Wildcards}) ->
    case has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:remove(Filter, Wildcards)};
        false -> S
    end;
part(Key, S = #subscriptions{groups = Groups}) ->
    S#subscriptions{groups = leave_group(Key, Groups)}.

has_wildcard(Filter) -> binary:match(Filter, [<<"+">>, <<"#">>]) =/= nomatch.

join_group(Key = {Share, _}, Groups) ->
    case Groups of
        #{Share := Group = #group{joining = Joining}} ->
            Groups#{Share := with(Key, Group#group{joining = Joining#{Key => []}})};
        #{} ->
            Groups#{Share => with(Key, #group{})}
    end.

with(Key = {_, Filter}, Group = #group{literals = Literals, wildcards = Wildcards}) ->
    case has_wildcard(Filter) of
        false -> Group#group{literals = Literals#{Key => []}};
        true -> Group#group{wildcards = nats_gateway_filters:add(Filter, Wildcards)}
    end.

is_leaving({undefined, _}, Groups) ->
    Groups;
is_leaving(Key = {Share, _}, Groups) ->
    #{Share := Group = #group{leaving = Leaving}} = Groups,
    Groups#{Share := Group#group{leaving = Leaving#{Key => []}}}.

leave_group(Key = {Share, _}, Groups) ->
    #{Share := Group} = Groups,
    NGroup =
        #group{literals = Literals, wildcards = Wildcards, joining = Joining, leaving = Leaving} =
        without(Key, Group),
    case map_size(Literals) + nats_gateway_filters:count(Wildcards) of
        0 ->
            maps:remove(Share, Groups);
        _ ->
            Groups#{
                Share := NGroup#group{
                    joining = maps:remove(Key, Joining), leaving = maps:remove(Key, Leaving)
                }
            }
    end.

without(Key, Group = #group{literals = Literals}) when is_map_key(Key, Literals) ->
    Group#group{literals = maps:remove(Key, Literals)};
without({_, Filter}, Group = #group{wildcards = Wildcards}) ->
    Group#group{wildcards = nats_gateway_filters:remove(Filter, Wildcards)}.

beyond({_, Filter}) ->
    ParentSize = byte_size(Filter) - 2,
    case Filter of
        <<Parent:ParentSize/binary, "/#">> when ParentSize >= 0 ->
            case binary:match(Parent, <<"+">>) of
                nomatch -> {bytes, ParentSize};
                _ -> {levels, levels(Parent)}
            end;
        _ ->
            any
    end.

is_beyond(_, any) -> true;
is_beyond(Topic, {bytes, N}) -> byte_size(Topic) > N;
is_beyond(Topic, {levels, N}) -> levels(Topic) > N.

levels(Topic) -> length(binary:matches(Topic, <<"/">>)) + 1.
