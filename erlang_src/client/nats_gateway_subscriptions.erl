%% The subscriptions of one client. They decide which sids get a delivery of the broker, and which
%% messages a change of the subscriptions has to wait for.
%%
%% The broker has one subscription for each key (share name and topic filter). NATS has one for each
%% sid. A delivery for a key goes to every plain sid of that key, or to one member of the queue
%% group (`nats_gateway_queue_group').
%%
%% A message goes to the sids that were subscribed when it was published. If a change makes the
%% broker subscribe or unsubscribe a key, the broker takes care of that. Any other change waits
%% until the messages on their way have arrived: this client's own messages, or all messages if
%% otherwise a sid would lose some.
-module(nats_gateway_subscriptions).

-export([new/0]).
-export([count/1]).
-export([bytes/1]).
-export([member/2]).
-export([add/5]).
-export([add_for_other/4]).
-export([remove/2]).
-export([limit/3]).
-export([key_state/2]).
-export([must_wait/3]).
-export([published/1]).
-export([next_segment/1]).
-export([flushed/1]).
-export([fenced/1]).
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

-include("nats_gateway.hrl").

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

-record(subscription, {
    subject :: binary(),
    queue_group :: undefined | binary(),
    key :: key(),
    %% For a plain sid this is the key's count when the sid was added, so that a delivery to a key
    %% with many sids changes one counter. For a queue member it is the number of its own
    %% deliveries, negated.
    offset :: integer(),
    max = infinity :: infinity | pos_integer()
}).

%% The plain sids of one key.
-record(entry, {
    %% empty only until the broker has unsubscribed the key
    sids = #{} :: #{sid() => []},
    %% the same as a list, once a message has come for the key
    list = undefined :: undefined | [sid()],
    %% The client has unsubscribed these, and the broker has not confirmed it yet. They get the
    %% messages that it has already sent.
    leaving = [] :: [sid()],
    beyond :: nats_gateway_filters:beyond(),
    delivered = 0 :: non_neg_integer(),
    %% the sids with a max
    limited = #{} :: #{sid() => []}
}).

%% The bytes that a subscription takes besides its subject and its filter.
-define(SUB_BYTES, 64).

%% All clients read a sid as an integer, some as a signed one of 32 bits.
-define(LAST_SID, 16#7FFFFFFF).

-record(subscriptions, {
    subs = #{} :: #{sid() => #subscription{}},
    entries = #{} :: #{key() => #entry{}},
    groups = #{} :: #{ShareName :: binary() => nats_gateway_queue_group:group()},
    %% the filters of plain keys that have a wildcard
    wildcards = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    %% the bytes of all subjects and filters
    bytes = 0 :: non_neg_integer(),
    %% sids that somebody else has subscribed
    of_others = [] :: [sid()],
    %% whether messages of this client may be on their way, because it has published since the last
    %% barrier
    published = false :: boolean(),
    %% whether no operation has come since the last barrier
    fenced = false :: boolean(),
    %% the sid of the latest SUB, if nothing was published since
    latest :: undefined | sid()
}).

-opaque subscriptions() :: #subscriptions{}.

-spec new() -> subscriptions().
new() -> #subscriptions{}.

-spec count(subscriptions()) -> non_neg_integer().
count(#subscriptions{subs = Subs}) -> map_size(Subs).

%% About how many bytes the binaries of all subscriptions take.
-spec bytes(subscriptions()) -> non_neg_integer().
bytes(#subscriptions{subs = Subs, bytes = Bytes}) -> ?SUB_BYTES * map_size(Subs) + Bytes.

-spec member(sid(), subscriptions()) -> boolean().
member(Sid, #subscriptions{subs = Subs}) -> is_map_key(Sid, Subs).

%% The sid must be free. With `new_key' the broker has to be asked for this key.
-spec add(sid(), binary(), undefined | binary(), key(), subscriptions()) ->
    {new_key | known_key, subscriptions()}.
add(Sid, Subject, QueueGroup, Key, S = #subscriptions{of_others = OfOthers}) ->
    {Known, NS} = enter_sid(Sid, Subject, QueueGroup, Key, S),
    NOfOthers =
        case OfOthers of
            [] -> [];
            _ -> lists:delete(Sid, OfOthers)
        end,
    {Known, NS#subscriptions{latest = Sid, of_others = NOfOthers}}.

%% Adds a subscription that somebody else has made for this client. Client libraries count their
%% sids up from 1, so this one counts down from the largest.
-spec add_for_other(binary(), undefined | binary(), key(), subscriptions()) -> subscriptions().
add_for_other(Subject, QueueGroup, Key, S = #subscriptions{of_others = OfOthers}) ->
    Sid = unused_sid(?LAST_SID, S),
    {_, NS} = enter_sid(Sid, Subject, QueueGroup, Key, S),
    NS#subscriptions{of_others = [Sid | OfOthers]}.

unused_sid(Number, S) ->
    Sid = integer_to_binary(Number),
    case member(Sid, S) of
        true -> unused_sid(Number - 1, S);
        false -> Sid
    end.

enter_sid(Sid, Subject, QueueGroup, Key, S = #subscriptions{subs = Subs, bytes = Bytes}) ->
    {Known, Offset, NS} = enter_key(Sid, Key, S),
    Sub = #subscription{subject = Subject, queue_group = QueueGroup, key = Key, offset = Offset},
    {Known, NS#subscriptions{subs = Subs#{Sid => Sub}, bytes = Bytes + text_bytes(Subject, Key)}}.

enter_key(Sid, Key = {undefined, Filter}, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{sids = Sids, delivered = Delivered}} ->
            Known =
                case map_size(Sids) of
                    0 -> new_key;
                    _ -> known_key
                end,
            NEntry = Entry#entry{sids = Sids#{Sid => []}, list = undefined},
            {Known, Delivered, S#subscriptions{entries = Entries#{Key := NEntry}}};
        #{} ->
            Entry = #entry{sids = #{Sid => []}, beyond = nats_gateway_filters:beyond(Filter)},
            {new_key, 0, add_wildcard(Filter, S#subscriptions{entries = Entries#{Key => Entry}})}
    end;
enter_key(Sid, {Share, Filter}, S = #subscriptions{groups = Groups}) ->
    Group =
        case Groups of
            #{Share := Found} -> Found;
            #{} -> nats_gateway_queue_group:new()
        end,
    {Known, NGroup} = nats_gateway_queue_group:add(Sid, Filter, Group),
    {Known, 0, S#subscriptions{groups = Groups#{Share => NGroup}}}.

text_bytes(Subject, {_, Filter}) -> byte_size(Subject) + byte_size(Filter).

%% Removes a sid without waiting for the broker.
-spec remove(sid(), subscriptions()) -> subscriptions().
remove(Sid, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := #subscription{key = Key}} -> remove_from(Key, Sid, forget(Sid, S));
        #{} -> S
    end.

remove_from(Key = {undefined, _}, Sid, S = #subscriptions{entries = Entries}) ->
    case remove_sid(Sid, maps:get(Key, Entries)) of
        #entry{sids = Sids, leaving = []} when map_size(Sids) =:= 0 -> drop_key(Key, S);
        Entry -> S#subscriptions{entries = Entries#{Key := Entry}}
    end;
remove_from({Share, Filter}, Sid, S = #subscriptions{groups = Groups}) ->
    #{Share := Group} = Groups,
    put_group(Share, nats_gateway_queue_group:remove(Sid, Filter, Group), S).

%% Removes the sid, but not from its key.
forget(Sid, S = #subscriptions{subs = Subs, bytes = Bytes, latest = Latest}) ->
    {#subscription{subject = Subject, key = Key}, NSubs} = maps:take(Sid, Subs),
    NLatest =
        case Latest of
            Sid -> undefined;
            _ -> Latest
        end,
    S#subscriptions{subs = NSubs, bytes = Bytes - text_bytes(Subject, Key), latest = NLatest}.

remove_sid(Sid, Entry = #entry{sids = Sids, limited = Limited}) ->
    Entry#entry{
        sids = maps:remove(Sid, Sids), list = undefined, limited = maps:remove(Sid, Limited)
    }.

drop_key(Key = {undefined, Filter}, S = #subscriptions{entries = Entries}) ->
    remove_wildcard(Filter, S#subscriptions{entries = maps:remove(Key, Entries)}).

put_group(Share, Group, S = #subscriptions{groups = Groups}) ->
    case nats_gateway_queue_group:is_empty(Group) of
        true -> S#subscriptions{groups = maps:remove(Share, Groups)};
        false -> S#subscriptions{groups = Groups#{Share := Group}}
    end.

%% The sid is free at once. If it was the last of its key, the key is returned, because the broker is
%% to be told. Such a sid still gets the messages that come before the broker confirms, unless it has
%% a max, which is never exceeded.
leave(Sid, #subscription{key = Key = {undefined, _}, max = Max}, S) ->
    NS = #subscriptions{entries = Entries} = forget(Sid, S),
    case remove_sid(Sid, maps:get(Key, Entries)) of
        Entry = #entry{sids = Sids} when map_size(Sids) > 0 ->
            {[], NS#subscriptions{entries = Entries#{Key := Entry}}};
        #entry{leaving = []} when Max =/= infinity ->
            {[Key], drop_key(Key, NS)};
        Entry = #entry{leaving = Leaving} ->
            NEntry = Entry#entry{leaving = [Sid || Max =:= infinity] ++ Leaving},
            {[Key], NS#subscriptions{entries = Entries#{Key := NEntry}}}
    end;
leave(Sid, #subscription{key = Key = {Share, Filter}, max = Max}, S) ->
    NS = #subscriptions{groups = Groups} = forget(Sid, S),
    #{Share := Group} = Groups,
    {Left, NGroup} = nats_gateway_queue_group:leave(Sid, Filter, Max =:= infinity, Group),
    {[Key || Left =:= last], NS#subscriptions{groups = Groups#{Share := NGroup}}}.

%% The broker has confirmed that nothing more comes for the key.
-spec unsubscribed(key(), subscriptions()) -> subscriptions().
unsubscribed(Key = {undefined, _}, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} when map_size(Sids) =:= 0 ->
            drop_key(Key, S);
        #{Key := Entry} ->
            S#subscriptions{entries = Entries#{Key := Entry#entry{leaving = []}}};
        #{} ->
            S
    end;
unsubscribed({Share, Filter}, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            put_group(Share, nats_gateway_queue_group:unsubscribed(Filter, Group), S);
        #{} ->
            S
    end.

%% The broker is another one, so that nothing that was under way will arrive.
-spec begin_anew(subscriptions()) -> subscriptions().
begin_anew(S) ->
    lists:foldl(fun(Key, Acc) -> joined(Key, unsubscribed(Key, Acc)) end, S, all_keys(S)).

%% All keys, also those without a sid, which the broker has still to unsubscribe.
all_keys(#subscriptions{entries = Entries, groups = Groups}) ->
    maps:keys(Entries) ++
        [
            {Share, Filter}
         || {Share, Group} <- maps:to_list(Groups),
            Filter <- nats_gateway_queue_group:all_filters(Group)
        ].

%% The broker knows the key. From now on it sends a copy of each matching message for it.
-spec joined(key(), subscriptions()) -> subscriptions().
joined({undefined, _}, S) ->
    S;
joined({Share, Filter}, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            NGroup = nats_gateway_queue_group:joined(Filter, Group),
            S#subscriptions{groups = Groups#{Share := NGroup}};
        #{} ->
            S
    end.

%% With `leaving' the broker has still to confirm an unsubscription of the key.
-spec key_state(key(), subscriptions()) -> known | leaving | unknown.
key_state(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids, leaving = []}} when map_size(Sids) > 0 -> known;
        #{Key := _} -> leaving;
        #{} -> unknown
    end;
key_state({Share, Filter}, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:filter_state(Filter, Group);
        #{} -> unknown
    end.

%% -------------------------------------------------------------------------------------------
%% Waiting for messages on their way

%% Decides which messages on their way have to arrive before the operation: none, this client's own,
%% or all. A verbose client gets its own earlier messages before the +OK.
-spec must_wait(nats_gateway_nif:op(), Verbose :: boolean(), subscriptions()) -> no | own | all.
must_wait(_, _, #subscriptions{fenced = true}) ->
    no;
must_wait(#sub{filter = Filter, share_name = Share, sid = Sid}, Verbose, S) ->
    #subscriptions{published = Published} = S,
    case key_state({Share, Filter}, S) of
        known when Published -> own;
        known -> no;
        leaving -> own;
        unknown when not Published -> no;
        unknown when Verbose -> own;
        %% A message on its way may be the last that a subscription takes, and then frees its sid.
        unknown -> own_if(member(Sid, S))
    end;
must_wait(#unsub{sid = Sid, max = Max}, Verbose, S) ->
    #subscriptions{published = Published, latest = Latest} = S,
    case takes_from_others(Sid, Max, S) of
        true -> all;
        false -> own_if((Max > 0 orelse Verbose) andalso Published andalso Sid =/= Latest)
    end;
%% The CONNECT may be refused, or begin another session with the broker.
must_wait({connect, _}, _, #subscriptions{published = Published}) ->
    own_if(Published);
must_wait(_, _, _) ->
    no.

own_if(true) -> own;
own_if(false) -> no.

%% Whether an UNSUB ends the deliveries to the sid at once, while the sid may still have to get
%% messages on their way.
takes_from_others(Sid, Max, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := Sub = #subscription{key = Key, max = OldMax}} ->
            delivered(Sub, S) >= Max andalso (OldMax =/= infinity orelse has_several(Key, S));
        #{} ->
            false
    end.

has_several(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    #{Key := #entry{sids = Sids}} = Entries,
    map_size(Sids) > 1;
has_several({Share, Filter}, #subscriptions{groups = Groups}) ->
    #{Share := Group} = Groups,
    nats_gateway_queue_group:has_several(Filter, Group).

%% The client has published.
-spec published(subscriptions()) -> subscriptions().
published(S = #subscriptions{published = true, fenced = false, latest = undefined}) -> S;
published(S) -> S#subscriptions{published = true, fenced = false, latest = undefined}.

%% Other operations have come since the last barrier.
-spec next_segment(subscriptions()) -> subscriptions().
next_segment(S = #subscriptions{fenced = false}) -> S;
next_segment(S) -> S#subscriptions{fenced = false}.

%% The messages that the client has published have arrived.
-spec flushed(subscriptions()) -> subscriptions().
flushed(S) -> S#subscriptions{published = false}.

%% The messages that `must_wait/3' asked for have arrived. The next operations of this segment have
%% nothing to wait for.
-spec fenced(subscriptions()) -> subscriptions().
fenced(S) -> S#subscriptions{published = false, fenced = true}.

%% -------------------------------------------------------------------------------------------

%% UNSUB with a max, which counts from the SUB. A max of 0, or one that is already reached, removes
%% the subscription at once.
-spec limit(sid(), non_neg_integer(), subscriptions()) -> {[key()], subscriptions()}.
limit(Sid, Max, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := Sub} ->
            case delivered(Sub, S) >= Max of
                true when Max =:= 0 ->
                    leave(Sid, Sub, S);
                true ->
                    leave(Sid, Sub#subscription{max = Max}, S);
                false ->
                    NSubs = Subs#{Sid := Sub#subscription{max = Max}},
                    {[], set_limited(Sid, Sub, S#subscriptions{subs = NSubs})}
            end;
        #{} ->
            {[], S}
    end.

set_limited(Sid, #subscription{key = Key = {undefined, _}}, S) ->
    #subscriptions{entries = Entries} = S,
    #{Key := Entry = #entry{limited = Limited}} = Entries,
    S#subscriptions{entries = Entries#{Key := Entry#entry{limited = Limited#{Sid => []}}}};
set_limited(_, _, S) ->
    S.

delivered(#subscription{key = {undefined, _} = Key, offset = Offset}, S) ->
    #subscriptions{entries = #{Key := #entry{delivered = Delivered}}} = S,
    Delivered - Offset;
delivered(#subscription{offset = Offset}, _) ->
    -Offset.

%% The broker has refused the key, so that its sids are free again. The subscriptions that the
%% client has made itself are returned.
-spec reject(key(), subscriptions()) -> {[subscription()], subscriptions()}.
reject(Key, S = #subscriptions{of_others = OfOthers}) ->
    Rejected = unordered_sids(Key, S),
    NS = lists:foldl(fun remove/2, S, Rejected),
    {
        [describe(Sid, S) || Sid <- Rejected, not lists:member(Sid, OfOthers)],
        NS#subscriptions{of_others = OfOthers -- Rejected}
    }.

%% The sids that get this copy of a message from the broker, and the keys that it made unused.
-spec deliver(key(), Topic :: binary(), nats_gateway_queue_group:message_id(), subscriptions()) ->
    {[sid()], [key()], subscriptions()}.
deliver(Key = {undefined, _}, Topic, _, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{beyond = Beyond}} ->
            case nats_gateway_filters:is_beyond(Topic, Beyond) of
                true -> deliver_to_all(Key, Entry, S);
                false -> {[], [], S}
            end;
        #{} ->
            {[], [], S}
    end;
deliver({Share, Filter}, Topic, Id, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            case nats_gateway_queue_group:next(Filter, Topic, Id, Group) of
                {member, Sid, NGroup} -> deliver_to_member(Sid, Share, NGroup, S);
                {left, Sid, NGroup} -> {[Sid], [], S#subscriptions{groups = Groups#{Share := NGroup}}};
                {nobody, NGroup} -> {[], [], S#subscriptions{groups = Groups#{Share := NGroup}}}
            end;
        #{} ->
            {[], [], S}
    end.

deliver_to_all(_, #entry{sids = Sids, leaving = Leaving}, S) when map_size(Sids) =:= 0 ->
    {Leaving, [], S};
deliver_to_all(Key, Entry = #entry{delivered = N, limited = Limited}, S) ->
    Sids = sid_list(Entry),
    #subscriptions{entries = Entries} = S,
    NS = S#subscriptions{entries = Entries#{Key := Entry#entry{list = Sids, delivered = N + 1}}},
    case map_size(Limited) of
        0 ->
            {Sids, [], NS};
        _ ->
            {Unused, NNS} = leave_all(sids_at_max(maps:keys(Limited), NS), NS),
            {Sids, Unused, NNS}
    end.

sid_list(#entry{list = undefined, sids = Sids}) -> maps:keys(Sids);
sid_list(#entry{list = Sids}) -> Sids.

sids_at_max(Sids, S = #subscriptions{subs = Subs}) ->
    [
        Sid
     || Sid <- Sids,
        Sub <- [maps:get(Sid, Subs)],
        delivered(Sub, S) >= Sub#subscription.max
    ].

leave_all(Sids, S) ->
    lists:foldl(
        fun(Sid, {Keys, Acc = #subscriptions{subs = Subs}}) ->
            {Unused, NAcc} = leave(Sid, maps:get(Sid, Subs), Acc),
            {Unused ++ Keys, NAcc}
        end,
        {[], S},
        Sids
    ).

deliver_to_member(Sid, Share, Group, S = #subscriptions{subs = Subs, groups = Groups}) ->
    Sub = #subscription{offset = Offset, max = Max} = maps:get(Sid, Subs),
    NSub = Sub#subscription{offset = Offset - 1},
    NS = S#subscriptions{subs = Subs#{Sid := NSub}, groups = Groups#{Share := Group}},
    case 1 - Offset >= Max of
        true ->
            {Unused, NNS} = leave(Sid, NSub, NS),
            {[Sid], Unused, NNS};
        false ->
            {[Sid], [], NS}
    end.

%% Whether a member of the queue group has got a copy of the message.
-spec is_taken(key(), nats_gateway_queue_group:message_id(), subscriptions()) -> boolean().
is_taken({Share, _}, Id, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:was_taken(Id, Group);
        #{} -> false
    end.

%% The sid that gets the 503 of a request. It has a plain subscription that matches the reply
%% subject, whose topic this is.
-spec plain_sid(Topic :: binary(), subscriptions()) -> undefined | sid().
plain_sid(Topic, #subscriptions{wildcards = Wildcards, entries = Entries}) ->
    first_sid([Topic | nats_gateway_filters:matching(Topic, Wildcards)], Topic, Entries).

first_sid([], _, _) ->
    undefined;
first_sid([Filter | Filters], Topic, Entries) ->
    case Entries of
        #{{undefined, Filter} := Entry = #entry{sids = Sids}} when map_size(Sids) > 0 ->
            case nats_gateway_filters:is_beyond(Topic, Entry#entry.beyond) of
                true -> hd(sid_list(Entry));
                false -> first_sid(Filters, Topic, Entries)
            end;
        #{} ->
            first_sid(Filters, Topic, Entries)
    end.

%% The key of this sid.
-spec key(sid(), subscriptions()) -> key().
key(Sid, #subscriptions{subs = Subs}) ->
    #{Sid := #subscription{key = Key}} = Subs,
    Key.

%% The sids of one key, in order.
-spec sids(key(), subscriptions()) -> [sid()].
sids(Key, S) ->
    [Sid || {_, Sid} <- lists:sort([{byte_size(Sid), Sid} || Sid <- unordered_sids(Key, S)])].

unordered_sids(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} -> maps:keys(Sids);
        #{} -> []
    end;
unordered_sids({Share, Filter}, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:sids(Filter, Group);
        #{} -> []
    end.

-spec keys(subscriptions()) -> [key()].
keys(S) -> [Key || Key <- all_keys(S), unordered_sids(Key, S) =/= []].

-spec list(subscriptions()) -> [subscription()].
list(S = #subscriptions{subs = Subs}) -> [describe(Sid, S) || Sid <- maps:keys(Subs)].

describe(Sid, S = #subscriptions{subs = Subs}) ->
    Sub = #subscription{subject = Subject, queue_group = QueueGroup, key = Key, max = Max} =
        maps:get(Sid, Subs),
    #{
        sid => Sid,
        subject => Subject,
        queue_group => QueueGroup,
        key => Key,
        delivered => delivered(Sub, S),
        max => Max
    }.

add_wildcard(Filter, S = #subscriptions{wildcards = Wildcards}) ->
    case nats_gateway_filters:has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:add(Filter, Wildcards)};
        false -> S
    end.

remove_wildcard(Filter, S = #subscriptions{wildcards = Wildcards}) ->
    case nats_gateway_filters:has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:remove(Filter, Wildcards)};
        false -> S
    end.
